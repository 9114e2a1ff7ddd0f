//! The pod bridge and pod addresses.
