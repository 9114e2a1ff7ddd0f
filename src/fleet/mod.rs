//! The server's side of the link: what each node should have, what it reported.
