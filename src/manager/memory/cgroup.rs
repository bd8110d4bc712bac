//! The memory that the container of this process may take.

use std::path::Path;

/// The least limit of the process's group and of those around it, in bytes; none if there is none.
pub fn limit() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    least(&groups, |path| std::fs::read_to_string(path).ok())
}

/// `groups` is the text of `/proc/self/cgroup`: a line a hierarchy, `ID:CONTROLLERS:PATH`, without controllers for version 2.
fn least(groups: &str, read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let lines = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        match controllers {
            "" => Some(("/sys/fs/cgroup", "memory.max", path)),
            _ if controllers.split(',').any(|name| name == "memory") => {
                Some(("/sys/fs/cgroup/memory", "memory.limit_in_bytes", path))
            }
            _ => None,
        }
    });
    let limits = lines.flat_map(|(root, file, path)| {
        // In a container the path may be that of the host, and the files are those of the root.
        let around: Vec<_> = Path::new(path.trim_start_matches('/')).ancestors().map(Path::to_owned).collect();
        let read = &read;
        around.into_iter().filter_map(move |path| read(&Path::new(root).join(path).join(file))?.trim().parse().ok())
    });
    // Version 1 says "no limit" with a number that no machine has.
    limits.filter(|limit| *limit < 1 << 50).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_limit_of_all_groups_around_holds() {
        let files = |files: &'static [(&str, &str)]| {
            move |path: &Path| {
                files.iter().find(|(name, _)| Path::new(name) == path).map(|(_, text)| (*text).to_owned())
            }
        };
        let v2 = files(&[
            ("/sys/fs/cgroup/pod/app/memory.max", "max\n"),
            ("/sys/fs/cgroup/pod/memory.max", "2147483648\n"),
            ("/sys/fs/cgroup/memory.max", "4294967296\n"),
        ]);
        assert_eq!(least("0::/pod/app\n", v2), Some(2 << 30));
        assert_eq!(least("0::/\n", files(&[("/sys/fs/cgroup/memory.max", "1048576")])), Some(1 << 20));
        assert_eq!(least("0::/\n", files(&[])), None);
        assert_eq!(least("0::/\n", files(&[("/sys/fs/cgroup/memory.max", "max")])), None);
        let v1 = "9:name=systemd:/\n4:cpu,memory:/app\n0::/\n";
        let limit = "/sys/fs/cgroup/memory/app/memory.limit_in_bytes";
        let none = files(&[("/sys/fs/cgroup/memory/app/memory.limit_in_bytes", "9223372036854771712\n")]);
        assert_eq!(least(v1, none), None, "{limit}");
        let some = files(&[("/sys/fs/cgroup/memory/app/memory.limit_in_bytes", "1073741824\n")]);
        assert_eq!(least(v1, some), Some(1 << 30));
        assert_eq!(least("nonsense", files(&[])), None);
    }
}
