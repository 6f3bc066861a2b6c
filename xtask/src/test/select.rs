//! Which stages run. Pure: the command line in, the stages out.

use anyhow::{Result, bail};

use super::stages::Stage;

/// The choice on the command line.
#[derive(Debug, Default)]
pub struct Choice<'a> {
    /// Only these; empty: all.
    pub only: &'a [String],
    /// All except these.
    pub skip: &'a [String],
    /// The short loop.
    pub fast: bool,
}

/// The stages to run, in their own order. A stage that another one needs is added, unless it is skipped by name. Without names, those that run
/// only if they are named are left out.
///
/// # Errors
/// When a name is not that of a stage, or nothing is left to run.
pub fn select<'a>(stages: &'a [Stage], choice: &Choice<'_>) -> Result<Vec<&'a Stage>> {
    for name in choice.only.iter().chain(choice.skip) {
        if !stages.iter().any(|stage| stage.name == name) {
            let valid: Vec<&str> = stages.iter().map(|stage| stage.name).collect();
            bail!("there is no stage {name:?}; valid names: {}", valid.join(", "));
        }
    }
    let named = |names: &[String], stage: &Stage| names.iter().any(|name| name == stage.name);
    let usual = |stage: &Stage| choice.only.is_empty() && !stage.named_only;
    let wanted = |stage: &Stage| (usual(stage) || named(choice.only, stage)) && (!choice.fast || stage.fast.is_some());
    let kept = |stage: &&Stage| !named(choice.skip, stage);
    let chosen: Vec<&Stage> = stages.iter().filter(|stage| wanted(stage)).filter(kept).collect();
    if chosen.is_empty() {
        bail!("no stage is left to run");
    }
    let needed = |stage: &Stage| chosen.iter().any(|other| other.name == stage.name || other.after.contains(&stage.name));
    Ok(stages.iter().filter(|stage| needed(stage)).filter(kept).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::stages::{Needs, STAGES};
    use super::*;

    fn chosen(only: &[&str], skip: &[&str], fast: bool) -> Vec<&'static str> {
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let choice = Choice { only: &owned(only), skip: &owned(skip), fast };
        select(STAGES, &choice).expect("a valid choice").iter().map(|stage| stage.name).collect()
    }

    #[test]
    fn without_a_choice_every_stage_runs_that_need_not_be_named() {
        let all = chosen(&[], &[], false);
        assert_eq!(all, STAGES.iter().filter(|stage| !stage.named_only).map(|stage| stage.name).collect::<Vec<_>>());
        assert!(all.contains(&"real-cluster") && !all.contains(&"csi"));
        assert_eq!(chosen(&["csi"], &[], false), ["xtask-program", "csi"]);
    }

    #[test]
    fn stages_run_in_their_own_order() {
        assert_eq!(chosen(&["unit", "format"], &[], false), ["format", "unit"]);
    }

    #[test]
    fn a_skipped_stage_does_not_run() {
        assert!(!chosen(&[], &["outages"], false).contains(&"outages"));
        assert_eq!(chosen(&["unit", "format"], &["unit"], false), ["format"]);
    }

    #[test]
    fn the_stages_that_a_stage_needs_run_too() {
        assert_eq!(chosen(&["http"], &[], false), ["xtask-program", "http"]);
        assert_eq!(chosen(&["http"], &["xtask-program"], false), ["http"]);
    }

    #[test]
    fn the_short_loop_needs_neither_go_nor_root() {
        let fast = chosen(&[], &[], true);
        assert!(fast.contains(&"unit") && fast.contains(&"simulator"), "{fast:?}");
        for stage in STAGES.iter().filter(|stage| fast.contains(&stage.name)) {
            assert!(matches!(stage.needs, Needs::Rust), "{} needs more than Rust", stage.name);
        }
    }

    #[test]
    fn an_unknown_name_is_an_error_that_lists_the_valid_ones() {
        let only = ["units".to_owned()];
        for choice in [Choice { only: &only, ..Choice::default() }, Choice { skip: &only, ..Choice::default() }] {
            let error = select(STAGES, &choice).expect_err("an unknown stage").to_string();
            assert!(error.starts_with("there is no stage \"units\"; valid names: format, deny, "), "{error}");
            assert!(error.ends_with("outages"), "{error}");
        }
    }

    #[test]
    fn an_empty_choice_is_an_error() {
        let (only, skip) = (["unit".to_owned()], ["unit".to_owned()]);
        assert!(select(STAGES, &Choice { only: &only, skip: &skip, fast: false }).is_err());
    }

    #[test]
    fn names_are_unique_and_kebab_case_and_what_a_stage_needs_comes_before_it() {
        let mut before = BTreeSet::new();
        for stage in STAGES {
            assert!(stage.name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'), "{}", stage.name);
            assert!(stage.after.iter().all(|name| before.contains(name)), "{}", stage.name);
            assert!(before.insert(stage.name), "{} is listed twice", stage.name);
        }
    }
}
