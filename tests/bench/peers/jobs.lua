-- One job of an account, or one page of its jobs, newest first.
-- ARGV: account, id or '', first rank, number
-- Answers {total, {id, {durations in ms of the node's latest jobs of its kind}, power of its server, field, ...},
-- ...}, the fields in the order of FIELDS from the kind on.
local account, id, first, number = unpack(ARGV)
local FIELDS = {'account', 'node', 'kind', 'state', 'step', 'server', 'server_name', 'snapshot', 'snapshot_name',
  'attempts', 'queued_ms', 'started_ms', 'finished_ms', 'downtime_seconds', 'failure_code', 'failure_detail', 'stranded',
  'retried_by'}
local list = 'account:' .. account .. ':jobs'
local ids = {id}
if id == '' then ids = redis.call('ZREVRANGE', list, first, first + number - 1) end
local page = {id == '' and redis.call('ZCARD', list) or 1}
for _, each in ipairs(ids) do
  local row = redis.call('HMGET', 'job:' .. each, unpack(FIELDS))
  if row[1] == account then
    local durations = redis.call('LRANGE', 'node:' .. row[2] .. ':milliseconds:' .. row[3], 0, -1)
    page[#page + 1] = {each, durations, redis.call('HGET', 'server:' .. row[6], 'power'), unpack(row, 3)}
  end
end
return page
