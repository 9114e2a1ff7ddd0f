//! Wiring of the server role: which parts start, in which order they stop.
