//! Inducer attention.

pub mod dropout;
pub mod reference;
