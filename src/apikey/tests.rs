//! The plan in a small simulated cluster: every request is applied to it, passes crash between any two requests, two leaders alternate with stale views,
//! and users and tenants make arbitrary changes. The promises are checked after every request.

mod scenarios;
pub(super) mod world;
