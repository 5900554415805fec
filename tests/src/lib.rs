//! Starts targets, attaches stalltrace, and holds what it reports against what the target itself recorded.
