//! Decides what one computer needs next: provisioning or deletion. Pure: the same view gives the same plan. It must never make a request.

use super::action::Action;
use super::report::{Next, Plan};
use super::view::View;
use super::{deletion, provision, stray_pod};

/// Plans the next action for a computer, whether it is being deleted or not.
pub fn plan(view: &View) -> Plan {
    if let Some(subject) = view.unconfirmed() {
        return Plan { next: Next::Do(Action::Read(subject)), report: super::failed_request::known(view) };
    }
    let planned = if view.deleting() { deletion::plan(view) } else { provision::plan(view) };
    // Last: a stray pod that cannot be removed delays neither the machine nor the revocation of its key.
    Plan { next: stray_pod::after(view, planned.next), report: planned.report }
}
