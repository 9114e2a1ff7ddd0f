//! The verbs on objects without HTTP: defaulting, validation, admission, preconditions, storing.
