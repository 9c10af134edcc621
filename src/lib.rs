//! Inducer attention.
