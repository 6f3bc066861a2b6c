//! `GET /api/v0/computers`. Not paginated, as published.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::wire::{self, WireComputer};
use crate::http::Shared;
use crate::http::access::{self, Target};
use crate::http::auth::{Authenticated, Caller};
use crate::http::error::{ApiError, ErrorBody};
use crate::http::extract::Params;
use crate::resources::Computer;

/// Parameters of the list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub struct ListParams {
    /// Only the computer with this host id.
    #[param(format = Uuid)]
    host_id: Option<String>,
    /// Whether to include the provisioning steps.
    #[param(inline)]
    include_provisioning_steps: Option<Flag>,
    /// Extension: the namespace to list. Defaults to the caller's own.
    #[param(min_length = 1, max_length = 63)]
    namespace: Option<String>,
}

/// `"true"` or `"false"`, as published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Flag {
    /// Yes.
    True,
    /// No.
    False,
}

/// The computers of a namespace that the caller may see, newest first.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ComputerList {
    /// The computers.
    pub computers: Vec<WireComputer>,
}

/// List computers
///
/// Lists the computers of the caller's namespace, newest first. The key of a computer lists only that computer. Deleted computers are not listed.
#[utoipa::path(
    get, path = "/api/v0/computers", operation_id = "listComputers", tag = "Computers", params(ListParams),
    responses(
        (status = 200, description = "The computers", body = ComputerList),
        (status = 400, description = "A parameter is invalid", body = ErrorBody),
        (status = 403, description = "The caller may not list computers", body = ErrorBody),
        (status = 404, description = "The key of a computer was used for another namespace, or may not read its computer", body = ErrorBody),
    )
)]
pub async fn list_computers(
    State(shared): State<Arc<Shared>>,
    by: Authenticated,
    Params(params): Params<ListParams>,
) -> Result<Json<ComputerList>, ApiError> {
    if let Some(host) = &params.host_id {
        super::check_uuid("hostId", host)?;
    }
    let namespace = by.caller.namespace(params.namespace.as_deref())?;
    let with_steps = params.include_provisioning_steps == Some(Flag::True);
    let wanted = |c: &Computer| !wire::is_deleted(c) && params.host_id.as_ref().is_none_or(|h| wire::has_host(c, h));
    let shown = |c: Computer| wanted(&c).then(|| Listed::of(&c, with_steps));
    let mut found: Vec<Listed> = match &by.caller {
        Caller::Computer(id, rights) => {
            access::require_own(id, rights)?;
            super::known(&shared, by.own, id).await?.and_then(shown).into_iter().collect()
        }
        Caller::User(_) => {
            access::require(&shared, &by.caller, "list", Target { resource: "computers", namespace: &namespace, name: None }).await?;
            shared.pick_computers(&namespace, shown).await?
        }
    };
    found.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.uid.cmp(&b.uid)));
    Ok(Json(ComputerList { computers: found.into_iter().map(|listed| listed.shown).collect() }))
}

/// What is kept of a computer while a list is collected: a tenant decides how large the rest is.
struct Listed {
    created: Timestamp,
    uid: Option<String>,
    shown: WireComputer,
}

impl Listed {
    fn of(computer: &Computer, with_steps: bool) -> Self {
        Self { created: wire::created(computer), uid: computer.metadata.uid.clone(), shown: wire::wire(computer, with_steps) }
    }
}
