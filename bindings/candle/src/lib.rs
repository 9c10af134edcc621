//! Inducer attention for candle.
