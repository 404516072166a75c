-- include: records, nodes, show, states, walk
-- One page of the cell's jobs, newest first.
-- Only reads.
-- ask: {silent_ms, match: {field of the record: value}, text: in lower case, or nil, fold: {its letters beyond a to z,
-- upper case: lower case}, cancelled: true: only cancelled jobs, false: only others, or nil, ended_since_ms
-- (inclusive), ended_until_ms (exclusive): bounds of the job's end, or nil, limit, after, since_ms, until_ms (see
-- `walk`)}
-- Answers {number of jobs if every job of a list matches, else -1, after, job (see `show_job` and `with_silence`),
-- ...}.
local ask = cjson.decode(ARGV[1])
ask.descending = true
local LONGEST_MS = 86400000 -- longest time from a job's admission to its end
local ended_since, ended_until = tonumber(ask.ended_since_ms), tonumber(ask.ended_until_ms)
-- The lists are sorted by admission, so only a part of them can have jobs that ended in that period.
if ended_since then
  ask.since_ms = string.format('%.0f', math.max(tonumber(ask.since_ms) or 0, ended_since - LONGEST_MS))
end
if ended_until then
  ask.until_ms = string.format('%.0f', math.min(tonumber(ask.until_ms) or ended_until, ended_until))
end
local match = ask.match
local CANCELLED = 'jobs:error:cancelled'
local LISTS = {
  state = 'jobs:state:', kind = 'jobs:kind:', node = 'jobs:node:', server = 'jobs:server:',
  failure_code = 'jobs:error:',
}
local lists, fields, values = {'jobs'}, {}, {}
for field, value in pairs(match) do
  lists[#lists + 1] = field == 'account' and 'account:' .. value .. ':jobs' or LISTS[field] .. value
  fields[#fields + 1], values[#values + 1] = field, value
end
if match.node and match.state and next(MAY_FOLLOW[match.state]) then
  lists[#lists + 1] = 'jobs:node:' .. match.node .. ':' .. match.state
end
local SEARCHED = {'server_name', 'snapshot_name', 'failure_detail', 'request_id'}

if ask.cancelled then lists[#lists + 1] = CANCELLED end

local function folded(text)
  text = string.lower(text) -- only the letters a to z
  for upper, lower in pairs(ask.fold) do text = string.gsub(text, upper, lower) end
  return text
end

local function matches(id)
  local found = redis.call('HMGET', 'job:' .. id, 'state', 'failure_code', 'finished_ms', unpack(fields))
  if not found[1] then return false end -- its record has expired
  if ask.cancelled ~= nil and ask.cancelled ~= (found[2] == 'cancelled') then return false end
  for i, value in ipairs(values) do
    if found[i + 3] ~= value then return false end
  end
  local ended = number(found[3])
  if ended_since and not (ended and ended >= ended_since) then return false end
  if ended_until and not (ended and ended < ended_until) then return false end
  if not ask.text then return true end
  for _, text in ipairs({id, unpack(redis.call('HMGET', 'job:' .. id, unpack(SEARCHED)))}) do
    if text and string.find(folded(text), ask.text, 1, true) then return true end
  end
  return false
end

local list = shortest(lists)
-- The number of jobs if every job of a list matches, otherwise -1.
local function count()
  if ask.text or ended_since or ended_until or #fields > 1 or #fields == 1 and ask.cancelled then return -1 end
  if ask.cancelled ~= false then return count_within(ask, list) end
  if match.state ~= 'failed' then return -1 end
  return math.max(0, count_within(ask, list) - count_within(ask, CANCELLED))
end

local read_before = {}
local page = walk(ask, list, 'job:', function(id)
  return matches(id) and with_silence(show_job(id, read_before), ask.silent_ms) or nil
end)
return {count(), unpack(page)}
