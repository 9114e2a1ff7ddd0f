//! One file a controller, one shared work queue and runner.
