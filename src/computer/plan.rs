//! The decision: what one computer needs next. Pure and total: the same view gives the same plan. No request is made here.

use super::action::Action;
use super::report::{Next, Plan};
use super::view::View;
use super::{deletion, provision};

/// Plans for a computer that lives or is being deleted.
pub fn plan(view: &View) -> Plan {
    if let Some(subject) = view.unconfirmed() {
        return Plan { next: Next::Do(Action::Read(subject)), report: super::failed::known(view) };
    }
    if view.deleting() { deletion::plan(view) } else { provision::plan(view) }
}
