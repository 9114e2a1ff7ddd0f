//! The node half: pod workers, volumes, environment, logs, statistics.
