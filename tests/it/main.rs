//! The integration tests: one program, so that all of them share one PostgreSQL container.

mod architecture;
