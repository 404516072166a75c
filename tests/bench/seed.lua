-- include: clock, records, states, stats, job_lists, conclude, snapshots
-- Write a cell in bulk, for a test of its size only. ARGV: 'nodes', 'servers', 'snapshots' or 'jobs', JSON
-- [row, ...]. No job is queued.
local now = now_ms()

local function node(row)
  redis.call('SADD', 'nodes', row.name)
  redis.call('ZADD', 'nodes:by:name', 0, row.name)
  redis.call('ZADD', 'nodes:by:heartbeat', now, row.name)
  redis.call('ZADD', 'nodes:by:queued', 0, row.name)
  redis.call('ZADD', 'nodes:by:free', row.free_bytes, row.name)
  write('node:' .. row.name, {owner = 'seed', machine = 'seed', who = 'seed', heartbeat_ms = now, about = row.about})
end

local function server(row)
  for _, key in ipairs({'servers', 'servers:node:' .. row.node, 'servers:account:' .. row.account}) do
    redis.call('ZADD', key, row.id, row.id)
  end
  redis.call('SADD', 'node:' .. row.node .. ':servers', row.id)
  write('server:' .. row.id, {v = '2', name = row.name, account = row.account, node = row.node, power = 'on'})
end

-- A row may lack failure_detail, stranded and downtime_seconds.
local function job(row)
  local id, at, ended = row.id, now - row.age_ms, now - row.age_ms + row.seconds * 1000
  row.id, row.age_ms, row.seconds = nil, nil, nil
  row.v, row.attempts, row.snapshot_description, row.step = '1', '1', '', 'preflight'
  row.queued_ms, row.snapshot_created_ms = string.format('%.0f', at), string.format('%.0f', at)
  local result = {
    state = row.state, failure_code = row.failure_code, stranded = row.stranded or '0',
    downtime_seconds = row.downtime_seconds or '',
  }
  if row.state ~= 'queued' then row.started_ms = row.queued_ms end
  if not next(MAY_FOLLOW[row.state]) then
    row.finished_ms = string.format('%.0f', ended)
    row.failure_detail, row.stranded = row.failure_detail or '', result.stranded
    row.downtime_seconds = result.downtime_seconds
    if ended > now - 7 * 86400000 then count_end(row, result, ended) end
  end
  write('job:' .. id, row)
  list_job(id, row)
  list_failure(id, row, result, ended)
end

local function snapshot(row)
  local id = row.id
  row.id, row.created_ms = nil, string.format('%.0f', now - row.age_ms)
  row.age_ms = nil
  add_snapshot(id, row)
end

local write_row = {nodes = node, servers = server, snapshots = snapshot, jobs = job}
for _, row in ipairs(cjson.decode(ARGV[2])) do write_row[ARGV[1]](row) end
return 1
