extension Hub {
  /// The version of all that is built here: programs, C library, man pages and
  /// packages. `scripts/version` reads it from this line.
  public static let version = "0.1.0"
}
