def pytest_addoption(parser):
    parser.addoption('--write-docs', action='store_true', help='write what the rows came to into docs/compatibility.md')
