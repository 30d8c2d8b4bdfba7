import HostWatch

/// Columns of text, numbers to the right.
struct Table {
  struct Column {
    let title: String
    var right = false
  }

  static func text(_ title: String) -> Column { Column(title: title) }
  static func number(_ title: String) -> Column { Column(title: title, right: true) }

  let columns: [Column]
  private var rows: [[String]] = []

  init(_ columns: [Column]) { self.columns = columns }

  /// One cell per column. Control characters are escaped.
  mutating func append(_ cells: [String]) {
    precondition(cells.count == columns.count)
    rows.append(cells.map { $0.isEmpty ? "-" : HostWatchClient.Name($0).description })
  }

  /// The title row and the rows.
  var lines: [String] {
    let all = [columns.map(\.title)] + rows
    let widths = columns.indices.map { column in all.map { Columns.width($0[column]) }.max() ?? 0 }
    return all.map { row in
      let line = columns.indices.map { column in
        let space = String(repeating: " ", count: widths[column] - Columns.width(row[column]))
        return columns[column].right ? space + row[column] : row[column] + space
      }.joined(separator: "  ")
      return String(line.reversed().drop { $0 == " " }.reversed())
    }
  }
}
