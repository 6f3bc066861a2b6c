//! Builds the archive pod of a computer of a class, for a dry run. Archive pods run in the operator's namespace as the user of the machine. If they
//! were rejected there, computers of the class would work but could never be deleted (L1); the class is rejected instead.

use k8s_openapi::api::core::v1::Pod;

use serde_json::Value;

use crate::computer::deletion;
use crate::computer::machine_pod;
use crate::computer::view::View;
use crate::resources::{ComputerClass, ComputerRecordSpec, ComputerSpec, Snapshot};
use crate::runtime::settings::Settings;
use crate::runtime::time_and_random::Fresh;

/// The UID of a computer that does not exist.
const NO_UID: &str = "00000000-0000-0000-0000-000000000000";

/// The snapshot that a computer of this class would have.
pub(super) fn snapshot(class: &ComputerClass, machine: &Value) -> Result<Snapshot, String> {
    machine_pod::snapshot(class, &ComputerSpec::default(), machine)
}

/// The archive pod of a computer with this snapshot, without a name.
pub(super) fn archive_pod(settings: &Settings, snapshot: Snapshot) -> Pod {
    let view = empty_view(settings);
    let record = crate::computer::new_record::new(&view, ComputerRecordSpec { snapshot, ..ComputerRecordSpec::default() });
    let mut pod = deletion::archive_pod(&view, &record, "");
    pod.metadata.name = None;
    pod
}

fn empty_view(settings: &Settings) -> View {
    let fresh = Fresh { suffix: String::new(), key: [0; 32] };
    View::new(NO_UID, "", "", settings.clone(), fresh, jiff::Timestamp::UNIX_EPOCH)
}
