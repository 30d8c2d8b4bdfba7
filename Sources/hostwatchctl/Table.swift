import HostWatch

/// Columns of text, numbers to the right.
struct Table {
  struct Column {
    let title: String
    var right = false
    /// When it is left out where room is short: 1 before 2 and so on, 0 never.
    var leave = 0
  }

  static func text(_ title: String, leave: Int = 0) -> Column {
    Column(title: title, leave: leave)
  }
  static func number(_ title: String, leave: Int = 0) -> Column {
    Column(title: title, right: true, leave: leave)
  }

  let columns: [Column]
  private var rows: [[String]] = []

  init(_ columns: [Column]) { self.columns = columns }

  /// One cell per column. Control characters are escaped.
  mutating func append(_ cells: [String]) {
    precondition(cells.count == columns.count)
    rows.append(cells.map { $0.isEmpty ? "-" : HostWatchClient.Name($0).description })
  }

  /// The title row and the rows.
  var lines: [String] { lines(width: nil) }

  /// The same without as many columns as have to go to make it no wider than
  /// `width` cells, if enough of them may.
  func lines(width: Int?) -> [String] {
    let all = [columns.map(\.title)] + rows
    let widths = columns.indices.map { column in all.map { Columns.width($0[column]) }.max() ?? 0 }
    var shown = Array(columns.indices)
    var going = shown.filter { columns[$0].leave > 0 }.sorted {
      columns[$0].leave > columns[$1].leave
    }
    while let width, shown.reduce(-2, { $0 + widths[$1] + 2 }) > width,
      let column = going.popLast()
    {
      shown.removeAll { $0 == column }
    }
    return all.map { row in
      let line = shown.map { column in
        let space = String(repeating: " ", count: widths[column] - Columns.width(row[column]))
        return columns[column].right ? space + row[column] : row[column] + space
      }.joined(separator: "  ")
      return String(line.reversed().drop { $0 == " " }.reversed())
    }
  }
}
