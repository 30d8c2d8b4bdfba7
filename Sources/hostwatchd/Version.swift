import HostWatch

/// What `--version` prints and the start is logged with.
let daemonVersion = Hub.version
