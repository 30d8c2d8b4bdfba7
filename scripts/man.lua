-- SPDX-License-Identifier: Apache-2.0
-- pandoc's filter for man pages: literals are bold, links to other documents
-- are their text, headings of the first level are capitals, and columns of
-- tables are as wide as what they hold needs.

local LINE = 68 -- of a terminal's 80, less the indent
local BETWEEN = 3 -- what tbl puts between two columns
local SMALL = 14
local PANDOC = 70 -- what pandoc takes for the whole line

-- \% keeps a literal from being hyphenated; headings and tables need none.
local WHOLE = pandoc.RawInline("man", "\\%")

function Code(code) return { WHOLE, pandoc.Strong(pandoc.Str(code.text)) } end

local function is_whole(raw) if raw == WHOLE then return {} end end

function Link(link)
  if link.target:match("^https?:") then return nil end
  return link.content
end

function Header(header)
  header.content = pandoc.Inlines(header.content):walk({
    RawInline = is_whole,
    Strong = function(strong) return strong.content end,
    Str = function(str)
      if header.level == 1 then return pandoc.Str(pandoc.text.upper(str.text)) end
    end,
  })
  return header
end

-- A path may be broken behind its slashes in a narrow column.
local function breakable(str)
  if #str.text < 16 or not str.text:find("/.") then return nil end
  local parts = pandoc.Inlines({})
  for part in str.text:gmatch("[^/]*/?") do
    if part ~= "" then
      if #parts > 0 then parts:insert(pandoc.RawInline("man", "\\:")) end
      parts:insert(pandoc.Str(part))
    end
  end
  return parts
end

function Table(table)
  table = table:walk({ RawInline = is_whole }):walk({ Str = breakable })
  local widest, longest, count = {}, {}, #table.colspecs
  local function look(rows)
    for _, row in ipairs(rows) do
      for i, cell in ipairs(row.cells) do
        local text = pandoc.utils.stringify(cell.contents)
        local length = pandoc.text.len(text)
        widest[i] = math.max(widest[i] or 0, length)
        for word in text:gmatch("%S+") do
          if #word > #(longest[i] or "") then longest[i] = word end
        end
      end
    end
  end
  look(table.head.rows)
  for _, body in ipairs(table.bodies) do look(body.body) end
  -- What fits is as wide as it is; the columns that do not share the rest.
  local rest, open = LINE - BETWEEN * (count - 1), count
  local width, done = {}, false
  while not done do
    done = true
    for i = 1, count do
      if not width[i] and (widest[i] or 0) <= rest / open then
        width[i] = math.max(widest[i] or 0, 1)
        rest, open, done = rest - width[i], open - 1, false
        if open == 0 then break end
      end
    end
    if open == 0 then done = true end
  end
  -- What is one long word is broken, but not into pieces that are too small.
  for i = 1, count do
    if not width[i] and #longest[i] > SMALL and rest / open < SMALL then
      width[i] = SMALL
      rest, open = rest - SMALL, open - 1
    end
  end
  for i = 1, count do
    table.colspecs[i] = { table.colspecs[i][1], (width[i] or math.floor(rest / open)) / PANDOC }
  end
  return table
end
