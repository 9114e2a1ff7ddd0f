//! The verbs on objects without HTTP: defaulting, validation, admission, preconditions, managed fields, storing.
//!
//! Everything that changes an object goes through here: the API, the controllers, the scheduler and the fleet.
