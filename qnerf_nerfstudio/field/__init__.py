"""QNeRF: the radiance field that renders query maps, and the rays it trains on."""
