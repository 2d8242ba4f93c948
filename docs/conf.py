"""Sphinx's settings. ``sphinx-build -W --keep-going -c docs . build/site`` makes the site, build/site/docs/index.html.

The site has the repository's root as its root, so that links work both in the repository and on the site.
"""

from mmrednet import __version__

project = 'mmrednet'
release = __version__
extensions = ['myst_nb', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'sphinx.ext.viewcode']
root_doc = 'docs/index'
include_patterns = ['README.md', 'CONTRIBUTING.md', 'SECURITY.md', 'CHANGELOG.md', 'docs/*.md', 'docs/*.ipynb']
html_theme = 'furo'
html_title = 'mmrednet'
autodoc_member_order = 'bysource'
autodoc_typehints = 'none'  # the docstrings contain the types
myst_heading_anchors = 3
nb_execution_mode = 'off'  # a test runs the notebook
# References to mmrednet must exist. References to types and to other packages are not checked.
nitpicky = True
nitpick_ignore_regex = [('py:.*', r'(?!mmrednet\.).*')]
