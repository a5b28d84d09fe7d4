"""The span of depths that a field from scratch sees, which widens as it trains."""

FOCUS = 1.0
"""Distance around which annealed depths begin: captures are scaled so that cameras stand about 1 from what they look
at."""


def annealed_span(near: float, far: float, progress: float) -> tuple[float, float]:
    """Near and far plane at a progress of annealing in [0, 1]: the span grows from half of its width to all of it, in
    distances before the focus and in inverse distances behind it."""
    share = max(0.5, progress)
    return FOCUS + (near - FOCUS) * share, 1 / (1 / FOCUS + (1 / far - 1 / FOCUS) * share)
