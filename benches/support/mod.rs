//! What the benches share.

pub(crate) mod machine;
pub(crate) mod options;
pub(crate) mod peak;
pub(crate) mod report;
pub(crate) mod shapes;
pub(crate) mod statistics;
pub(crate) mod table;
pub(crate) mod tensors;
pub(crate) mod timing;
