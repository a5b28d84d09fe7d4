"""Only the warnings that are known are kept out of the terminal."""

import warnings

from qnerf_nerfstudio.common.quiet import ignore_third_party_warnings


def test_known_warnings_are_ignored_and_others_shown() -> None:
    known = [
        ("`torch.cuda.amp.GradScaler(args...)` is deprecated.", FutureWarning),
        ("Using a non-tuple sequence for multidimensional indexing is deprecated", UserWarning),
        ("This DataLoader will create 4 worker processes in total.", UserWarning),
    ]
    others = [("the field is empty", UserWarning), ("`numpy.float` is deprecated", FutureWarning)]
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        ignore_third_party_warnings()
        for text, category in (*known, *others):
            warnings.warn(text, category, stacklevel=1)
    assert [str(each.message) for each in shown] == [text for text, _ in others]
