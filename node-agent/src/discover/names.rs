//! Which pod a cgroup belongs to, by the ways the kubelet and the runtimes spell it.

/// Whether one part of a cgroup's path is that of the pod `uid`.
///
/// With the cgroupfs driver it is `pod<uid>`, with systemd's `kubepods-<class>-pod<uid>.slice`
/// and `_` for `-`; a runtime that mixes them up adds `:cri-containerd:<id>` to the latter.
pub fn is_pod(part: &str, uid: &str) -> bool {
    if part.strip_prefix("pod") == Some(uid) {
        return true;
    }
    let slice = part.split(':').next().unwrap_or_default();
    let Some(stem) = slice.strip_suffix(".slice") else {
        return false;
    };
    let Some((class, found)) = stem.rsplit_once("-pod") else {
        return false;
    };
    // systemd joins the names of the slices above with dashes, so the uid has none.
    class
        .split('-')
        .next_back()
        .is_some_and(|last| !last.is_empty())
        && found.len() == uid.len()
        && found
            .bytes()
            .zip(uid.bytes())
            .all(|(found, wanted)| found == wanted || (found == b'_' && wanted == b'-'))
}

/// Which of `uids` a `/proc/PID/cgroup` names, in any of its hierarchies.
pub fn pod_of<'a>(cgroup: &str, uids: &[&'a str]) -> Option<&'a str> {
    // ID:CONTROLLERS:PATH, and a path may have colons.
    let paths = cgroup.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    let mut parts = paths.flat_map(|path| path.split('/'));
    parts.find_map(|part| uids.iter().copied().find(|uid| is_pod(part, uid)))
}

#[cfg(test)]
mod tests {
    use super::{is_pod, pod_of};

    const UID: &str = "1b2c3d4e-0000-1111-2222-333344445555";
    const OTHER: &str = "ffffffff-0000-1111-2222-333344445555";
    const ESCAPED: &str = "1b2c3d4e_0000_1111_2222_333344445555";

    #[test]
    fn every_spelling_is_known() {
        let check = |cgroup: &str, expected: Option<&str>| {
            assert_eq!(pod_of(cgroup, &[OTHER, UID]), expected, "{cgroup}");
        };
        // cgroupfs, v2.
        check(
            &format!("0::/kubepods/besteffort/pod{UID}/abc\n"),
            Some(UID),
        );
        check(&format!("0::/kubepods/pod{UID}/abc\n"), Some(UID));
        check(
            &format!("0::/kubepods/burstable/pod{OTHER}/abc\n"),
            Some(OTHER),
        );
        // systemd, v2.
        check(
            &format!(
                "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{ESCAPED}.slice/cri-containerd-abc.scope\n"
            ),
            Some(UID),
        );
        check(
            &format!("0::/kubepods.slice/kubepods-pod{ESCAPED}.slice/crio-abc.scope\n"),
            Some(UID),
        );
        // Below a cgroup root of the kubelet's own.
        check(
            &format!(
                "0::/a.slice/a-kubepods.slice/a-kubepods-burstable.slice/a-kubepods-burstable-pod{ESCAPED}.slice/x\n"
            ),
            Some(UID),
        );
        // The runtime's driver is another one than the kubelet's.
        check(
            &format!("0::/system.slice/kubepods-burstable-pod{ESCAPED}.slice:cri-containerd:abc\n"),
            Some(UID),
        );
        // v1 and hybrid: any hierarchy will do.
        check(
            &format!("12:cpu,cpuacct:/kubepods/burstable/pod{UID}/abc\n1:name=systemd:/x\n"),
            Some(UID),
        );
        check(
            &format!("5:memory:/kubepods/pod{UID}/abc\n0::/system.slice/containerd.service\n"),
            Some(UID),
        );
        // Seen from inside a cgroup namespace.
        check(&format!("0::/../../pod{UID}/abc\n"), Some(UID));
        check("0::/\n", None);
        check("", None);
        check("garbage\n1:\n::\n", None);
        check("0::/system.slice/sshd.service\n", None);
    }

    #[test]
    fn others_are_not_taken_for_it() {
        for part in [
            format!("pod{UID}x"),
            format!("xpod{UID}"),
            UID.to_owned(),
            format!("kubepods-pod{ESCAPED}"),
            format!("-pod{ESCAPED}.slice"),
            format!("kubepods-pod{}.slice", &ESCAPED[1..]),
            "pod".to_owned(),
            "podinfo".to_owned(),
            ".slice".to_owned(),
            "-pod.slice".to_owned(),
        ] {
            assert!(!is_pod(&part, UID), "{part}");
        }
    }
}
