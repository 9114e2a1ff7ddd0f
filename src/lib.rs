//! Umiak.
