//! Reading objects by the field table.

pub mod quantity;
