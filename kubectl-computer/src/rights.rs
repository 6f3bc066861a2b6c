//! The rights that each command needs: one table, from which `check` asks the API server and the page `docs/kubectl-computer.md` is written.
//! Nothing here talks to a cluster. No command needs the right to read Secrets.

use computer_operator_api::GROUP;

/// Where a right must be granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// In the computer's namespace.
    Namespace,
    /// In the operator's namespace.
    Operator,
    /// In the whole cluster.
    Cluster,
}

/// One right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Right {
    /// The verb, for example `get`.
    pub verb: &'static str,
    /// The API group; empty for the core group.
    pub group: &'static str,
    /// The resource, with its subresource: `pods/exec`.
    pub resource: &'static str,
    /// Where.
    pub scope: Scope,
}

/// A command and what it needs.
#[derive(Clone, Copy, Debug)]
pub struct Command {
    /// Its name.
    pub name: &'static str,
    /// It does not work without these.
    pub needs: &'static [Right],
    /// It shows or does more with these.
    pub uses: &'static [Right],
}

const fn right(verb: &'static str, group: &'static str, resource: &'static str, scope: Scope) -> Right {
    Right { verb, group, resource, scope }
}

const GET: Right = right("get", GROUP, "computers", Scope::Namespace);
const LIST: Right = right("list", GROUP, "computers", Scope::Namespace);
const WATCH: Right = right("watch", GROUP, "computers", Scope::Namespace);
const CREATE: Right = right("create", GROUP, "computers", Scope::Namespace);
const DELETE: Right = right("delete", GROUP, "computers", Scope::Namespace);
const PATCH: Right = right("patch", GROUP, "computers", Scope::Namespace);
const EVENTS: Right = right("list", "", "events", Scope::Namespace);
const SESSIONS: Right = right("list", GROUP, "sessions", Scope::Namespace);
const POD: Right = right("get", "", "pods", Scope::Namespace);
const CLAIM: Right = right("get", "", "persistentvolumeclaims", Scope::Namespace);
const CLASS: Right = right("get", GROUP, "computerclasses", Scope::Cluster);
const RECORD: Right = right("get", GROUP, "computerrecords", Scope::Operator);
const RECORDS: Right = right("list", GROUP, "computerrecords", Scope::Operator);
const RECORD_WATCH: Right = right("watch", GROUP, "computerrecords", Scope::Operator);
const RECORD_EVENTS: Right = right("list", "", "events", Scope::Operator);
const OVERRIDE: Right = right("create", GROUP, "deletionoverrides", Scope::Cluster);
/// In a namespace it is the right to see that namespace.
const NAMESPACE: Right = right("get", "", "namespaces", Scope::Namespace);
const TOKEN: Right = right("create", "", "serviceaccounts/token", Scope::Namespace);
const EXEC: Right = right("create", "", "pods/exec", Scope::Namespace);

/// Every command, in the order of the documentation.
pub const COMMANDS: &[Command] = &[
    Command { name: "why", needs: &[GET], uses: &[LIST, CLASS, EVENTS, RECORD, RECORDS, RECORD_EVENTS] },
    Command { name: "list", needs: &[LIST], uses: &[] },
    Command { name: "status", needs: &[GET], uses: &[CLASS, EVENTS, SESSIONS, RECORD] },
    Command { name: "delete", needs: &[GET, DELETE], uses: &[CLASS, RECORD] },
    Command { name: "delete --wait", needs: &[GET, DELETE, LIST, WATCH], uses: &[NAMESPACE, CLASS, EVENTS, RECORD, RECORD_WATCH] },
    Command { name: "create", needs: &[CREATE], uses: &[] },
    Command { name: "create --wait", needs: &[CREATE, GET, LIST, WATCH], uses: &[CLASS, EVENTS] },
    Command { name: "suspend", needs: &[GET, PATCH], uses: &[] },
    Command { name: "resume", needs: &[GET, PATCH], uses: &[LIST, WATCH] },
    Command { name: "override", needs: &[OVERRIDE], uses: &[GET, RECORD, RECORDS] },
    Command { name: "exec", needs: &[GET, POD, EXEC], uses: &[LIST, WATCH, PATCH] },
    Command { name: "shell", needs: &[GET, POD, EXEC], uses: &[LIST, WATCH, PATCH] },
    Command { name: "cp", needs: &[GET, POD, EXEC], uses: &[LIST, WATCH, PATCH] },
    Command { name: "logs", needs: &[GET, POD, right("get", "", "pods/log", Scope::Namespace)], uses: &[] },
    Command {
        name: "port-forward",
        needs: &[GET, POD, right("create", "", "pods/portforward", Scope::Namespace)],
        uses: &[LIST, WATCH, PATCH],
    },
    Command { name: "receipt", needs: &[RECORD], uses: &[GET, RECORDS] },
    Command { name: "archives", needs: &[LIST, right("get", GROUP, "computers/archive", Scope::Namespace)], uses: &[TOKEN] },
    Command { name: "tree", needs: &[GET], uses: &[POD, CLAIM, SESSIONS, RECORD] },
    Command { name: "report", needs: &[GET], uses: &[LIST, CLASS, EVENTS, POD, RECORD, RECORDS, RECORD_EVENTS] },
];

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    const BEGIN: &str =
        "<!-- rights: generated from kubectl-computer/src/rights.rs, with UPDATE_DOCS=1 cargo test -p kubectl-computer -->\n";
    const END: &str = "<!-- end of rights -->";

    #[test]
    fn the_table_of_rights_in_the_documentation_is_what_check_asks_for() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/kubectl-computer.md");
        let page = std::fs::read_to_string(path).unwrap();
        let (before, rest) = page.split_once(BEGIN).unwrap();
        let (_, after) = rest.split_once(END).unwrap();
        let wanted = format!("{before}{BEGIN}\n{}\n{END}{after}", table());
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(path, wanted).unwrap();
        } else {
            assert!(page == wanted, "docs/kubectl-computer.md is outdated: run `UPDATE_DOCS=1 cargo test -p kubectl-computer`");
        }
    }

    #[test]
    fn no_command_reads_secrets_or_writes_what_belongs_to_the_operator() {
        for right in COMMANDS.iter().flat_map(|command| command.needs.iter().chain(command.uses)) {
            assert!(!right.resource.starts_with("secrets") && !right.resource.ends_with("/status"), "{}", right.resource);
            assert!(right.resource != "computerrecords" || ["get", "list", "watch"].contains(&right.verb), "{}", right.resource);
        }
    }

    #[test]
    fn every_command_with_rights_exists_and_has_an_entry() {
        let command = <crate::args::Args as clap::CommandFactory>::command();
        let names: Vec<&str> = command.get_subcommands().map(clap::Command::get_name).collect();
        let own = |name: &str| name.split(' ').next().unwrap_or_default().to_owned();
        for entry in COMMANDS {
            assert!(names.contains(&own(entry.name).as_str()), "{}", entry.name);
        }
        for name in names.iter().filter(|name| !["check", "completion", "man", "help"].contains(name)) {
            assert!(COMMANDS.iter().any(|entry| own(entry.name) == **name), "{name} has no rights");
        }
    }

    /// The table of the documentation.
    fn table() -> String {
        let mut text = "| command | needs | shows or does more with |\n|---|---|---|\n".to_owned();
        for command in COMMANDS {
            let _ = writeln!(text, "| `{}` | {} | {} |", command.name, cell(command.needs), cell(command.uses));
        }
        text
    }

    fn cell(rights: &[Right]) -> String {
        let one = |right: &Right| {
            let place = match right.scope {
                Scope::Namespace => "",
                Scope::Operator => " (operator's namespace)",
                Scope::Cluster => " (cluster)",
            };
            format!("{} `{}`{place}", right.verb, right.resource)
        };
        rights.iter().map(one).collect::<Vec<_>>().join(", ")
    }
}
