import Testing

@testable import HostWatch

@Suite struct HandleTests {
  @Test func aHandleOfTheRootFilesystemOpensTheSameObject() throws {
    let directory = try Syscall.openDirectory("/")
    let handle = try Syscall.handle(of: directory.rawValue)
    #expect(handle == (try Syscall.handle(of: directory.rawValue)))
  }
}
