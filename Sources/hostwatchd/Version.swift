/// What `--version` prints and the start is logged with.
let daemonVersion = "0.1.0"
