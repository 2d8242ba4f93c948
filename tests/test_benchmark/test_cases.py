from mmrednet.benchmark.cases import Case, fpn_case, rednet_cases, stage_cases


def test_cases_are_those_of_the_model():
    cases = rednet_cases()
    assert len(cases) == 8
    assert cases[:2] == [Case(32, (112, 112), (3, 3), groups=2), Case(64, (56, 56), groups=4)]
    assert Case(512, (14, 14), stride=(2, 2), groups=32) in cases and Case(512, (7, 7), groups=32) in cases
    assert stage_cases() == [case for case in cases if case.kernel_size == (7, 7) and case.stride == (1, 1)]
    assert fpn_case((800, 1280)) == Case(256, (200, 320), groups=16)
