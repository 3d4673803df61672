//! What is on, and where.

/// Name of a setting, and of what makes it so.
pub const OFF: &str = "off";

/// An agent or waypoint that runs all the time.
pub struct Process {
    /// Part of names in the lab.
    pub name: &'static str,
    /// Arguments of agent and waypoint.
    pub args: &'static [&'static str],
}

/// What cannot be changed in one that runs is an agent and a waypoint of its own.
pub const PROCESSES: &[Process] = &[
    Process {
        name: OFF,
        args: &["--access-log=off", "--without-traffic-metrics"],
    },
    Process {
        name: "again",
        args: &["--access-log=off", "--without-traffic-metrics"],
    },
    Process {
        name: "metrics",
        args: &["--access-log=off"],
    },
    Process {
        name: "log",
        args: &["--access-log=json"],
    },
];

/// Whether somebody watches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tap {
    /// Nobody.
    Off,
    /// Somebody who reads all events.
    ReadAll,
}

/// What is on.
pub struct Setting {
    /// Name in the result.
    pub name: &'static str,
    /// Index of its [`PROCESSES`].
    pub process: usize,
    /// Begun and ended while the process runs.
    pub tap: Tap,
    /// Whether traffic is counted.
    pub metrics: bool,
    /// Whether there is an access log.
    pub log: bool,
}

/// In the order in which they add up.
pub const SETTINGS: &[Setting] = &[
    Setting {
        name: OFF,
        process: 0,
        tap: Tap::Off,
        metrics: false,
        log: false,
    },
    Setting {
        name: "again",
        process: 1,
        tap: Tap::Off,
        metrics: false,
        log: false,
    },
    Setting {
        name: "metrics",
        process: 2,
        tap: Tap::Off,
        metrics: true,
        log: false,
    },
    Setting {
        name: "log",
        process: 3,
        tap: Tap::Off,
        metrics: true,
        log: true,
    },
    Setting {
        name: "tap",
        process: 3,
        tap: Tap::ReadAll,
        metrics: true,
        log: true,
    },
];

/// What is compared.
pub struct Comparison {
    /// What has more on.
    pub more: &'static str,
    /// Than which.
    pub less: &'static str,
    /// Share that it may add.
    pub goal: Option<f64>,
}

/// Two processes of the same settings: what they differ by is no setting's.
pub const CONTROL: Comparison = Comparison {
    more: "again",
    less: OFF,
    goal: None,
};

/// What is asked.
pub const COMPARISONS: &[Comparison] = &[
    Comparison {
        more: "metrics",
        less: OFF,
        goal: Some(0.03),
    },
    Comparison {
        more: "log",
        less: "metrics",
        goal: Some(0.10),
    },
    Comparison {
        more: "tap",
        less: "log",
        goal: None,
    },
];
