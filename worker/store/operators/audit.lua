-- One page of the audit, newest first.
-- Only reads.
-- ask: {match: {field: value}, from, to: ids of the stream, limit}
-- Answers {id to continue before or '', {id, {field, value, ...}, codes that its job has noted or ''}, ...}.
-- The codes are looked up here, so that a node, which notes them, needs no right to write to the audit, and an entry
-- has them whether its job ended before or after it was written.
local ask = cjson.decode(ARGV[1])
local looked, page, to = 0, {''}, ask.to

local function named(flat)
  local entry = {}
  for i = 1, #flat, 2 do entry[flat[i]] = flat[i + 1] end
  return entry
end

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

local LOOKS = 2000 -- entries that one call looks at: a bound on how long it holds Redis

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
