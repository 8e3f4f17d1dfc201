//! Accounts: passwords, sessions, and the ways to get one.

pub mod deactivation;
pub mod interactive_auth;
pub mod login;
pub mod new_sessions;
pub mod password_policy;
pub mod passwords;
pub mod registration;
pub mod sessions;
pub mod throttle;
