-- include: clock, records
-- Checks, before a change, that its answer and its job can show the records. Otherwise the change would be made, and
-- its outcome would be unknown to the caller, or its job would hold the server forever, because its node could not read
-- it.

local LAST_MOMENT_MS = 253402300799999 -- the end of the year 9999

-- Whether the text is valid UTF-8. A plain pattern finds nothing else in almost all texts.
local function is_utf8(text)
  if not string.find(text, '[\128-\255]') then return true end
  for _, sequence in ipairs({
    '[\194-\223][\128-\191]', '\224[\160-\191][\128-\191]', '\237[\128-\159][\128-\191]',
    '[\225-\236\238\239][\128-\191][\128-\191]', '\240[\144-\191][\128-\191][\128-\191]',
    '[\241-\243][\128-\191][\128-\191][\128-\191]', '\244[\128-\143][\128-\191][\128-\191]',
  }) do
    text = string.gsub(text, sequence, ' ')
  end
  return not string.find(text, '[\128-\255]')
end

local function is_count(text)
  return string.find(text, '^%d+$') and number(text) ~= nil
end

local function is_size_or_none(text)
  return text == '' or is_count(text)
end

local function is_moment(text)
  return is_count(text) and number(text) <= LAST_MOMENT_MS
end

local function are_labels(text)
  local labels = is_utf8(text) and not string.find(text, '[%z\1-\31]') and string.find(text, '^%s*{') and json(text)
  if not labels then return false end
  for _, value in pairs(labels) do
    if type(value) ~= 'string' then return false end
  end
  return true
end

-- The text for a job; '' if it cannot be shown.
local function text_for_job(text)
  return text and is_utf8(text) and text or ''
end

-- The fields of the snapshot that its delete shows, because a damaged snapshot must be possible to delete.
local function snapshot_for_job(snapshot)
  return {
    name = text_for_job(snapshot.name), description = text_for_job(snapshot.description),
    created_ms = is_moment(snapshot.created_ms or '') and snapshot.created_ms or now_text(),
  }
end

local STATUSES = {in_progress = true, completed = true, failed = true, deleting = true}

local function is_status(text)
  return STATUSES[text]
end

-- End the script unless an answer can show what a list shows of the snapshot.
local function demand_brief(key, snapshot)
  local checks =
    {name = is_utf8, description = is_utf8, size_mb = is_size_or_none, created_ms = is_moment, status = is_status}
  for field, is_readable in pairs(checks) do
    if not snapshot[field] or not is_readable(snapshot[field]) then
      return unreadable(key, field .. ' cannot be read')
    end
  end
end

-- End the script unless an answer can show all other fields of the snapshot, or of the server.
local function demand_whole(key, record)
  local optional = {labels = are_labels, expires_ms = is_moment}
  for field, text in pairs(record) do
    local is_readable = text ~= '' and optional[field] or is_utf8
    if not is_readable(text) then return unreadable(key, field .. ' cannot be read') end
  end
end
