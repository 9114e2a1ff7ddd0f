//! The HTTP server: listener, authentication, routing by the kind table, content negotiation, verbs, watch, streams.

pub mod stream;
