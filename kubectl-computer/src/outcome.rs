//! How a command ends, and its exit code. The codes are published in the help and in `docs/kubectl-computer.md`: they never change.

/// The end of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// What was asked for is done.
    Done,
    /// It failed, or it cannot be known.
    Failed,
    /// It waits for something that does not happen by itself.
    Blocked,
    /// The wait ended, by its timeout or by the user. What was waited for continues.
    Timeout,
}

impl Outcome {
    /// The exit code.
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Blocked => 2,
            Self::Timeout => 3,
        }
    }

    /// As JSON lines name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "Done",
            Self::Failed => "Failed",
            Self::Blocked => "Blocked",
            Self::Timeout => "Timeout",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_depend_on_the_exit_codes() {
        let all = [Outcome::Done, Outcome::Failed, Outcome::Blocked, Outcome::Timeout];
        assert_eq!(all.map(|outcome| (outcome.code(), outcome.as_str())), [(0, "Done"), (1, "Failed"), (2, "Blocked"), (3, "Timeout")]);
    }
}
