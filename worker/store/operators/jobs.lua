-- include: show, states, walk
-- One page of the cell's jobs, newest first.
-- Only reads.
-- ask: {match: {field of the record: value}, text or nil, cancelled: whether only those that were cancelled, or all
-- others; or nil, limit, after, since_ms, until_ms (see `walk`)}
-- Answers {number of jobs if every job of a list matches, else -1, after, job (see `show_job`), ...}.
local ask = cjson.decode(ARGV[1])
ask.descending = true
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

local function matches(id)
  local found = redis.call('HMGET', 'job:' .. id, 'state', 'failure_code', unpack(fields))
  if not found[1] then return false end -- its record has expired
  if ask.cancelled ~= nil and ask.cancelled ~= (found[2] == 'cancelled') then return false end
  for i, value in ipairs(values) do
    if found[i + 2] ~= value then return false end
  end
  if not ask.text then return true end
  for _, text in ipairs({id, unpack(redis.call('HMGET', 'job:' .. id, unpack(SEARCHED)))}) do
    if text and string.find(string.lower(text), ask.text, 1, true) then return true end
  end
  return false
end

local list = shortest(lists)
-- How many there are, where every job of a list matches; else -1.
local function count()
  if ask.text or #fields > 1 or #fields == 1 and ask.cancelled then return -1 end
  if ask.cancelled ~= false then return count_within(ask, list) end
  if match.state ~= 'failed' then return -1 end
  return math.max(0, count_within(ask, list) - count_within(ask, CANCELLED))
end

local page = walk(ask, list, 'job:', function(id)
  return matches(id) and show_job(id) or nil
end)
return {count(), unpack(page)}
