-- include: records, walk
-- One page of the audit log, newest first.
-- Only reads.
-- ask: {match: {field: value}, from, to: IDs of the stream, limit}
-- Answers {ID of the last entry, or '' on the last page, {ID, {field, value, ...}, note codes of its job or ''}, ...}.
-- The codes are looked up here: a node, which writes them, may not write to the audit log, and its job may end after
-- the entry is written.
local ask = cjson.decode(ARGV[1])
local looked, page, to = 0, {''}, ask.to

local function noted(entry)
  local job_id = string.match(entry.made or '', '^job (%x+)$') or entry.job
  return job_id and redis.call('GET', 'job:' .. job_id .. ':noted') or ''
end

local function matches(entry)
  for field, value in pairs(ask.match) do
    if entry[field] ~= value then return false end
  end
  return true
end

while looked < LOOKS do
  local found = redis.call('XREVRANGE', 'audit', to, ask.from, 'COUNT', 500)
  for _, entry in ipairs(found) do
    looked, to = looked + 1, '(' .. entry[1]
    page[1] = entry[1]
    local fields = named(entry[2])
    if matches(fields) then page[#page + 1] = {entry[1], entry[2], noted(fields)} end
    if #page > ask.limit then return page end
  end
  if #found < 500 then
    page[1] = ''
    return page
  end
end
return page
