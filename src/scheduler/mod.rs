//! Filters and scores as pure functions on a snapshot; one loop that binds.
