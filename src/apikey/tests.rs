//! The plan in a small world of its own: every request is applied to it, passes crash between any two requests, two leaders take
//! turns with views that are behind, and the user and a tenant do what they like. The promises are looked at after every request.

mod scenarios;
mod world;
