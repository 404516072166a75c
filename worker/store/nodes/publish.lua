-- include: clock, records, nodes, events, job_lists, snapshots
-- A node publishes what it has of a server: the snapshots on its disks and the jobs that it has begun. Records that the
-- store has stay as they are; contents that it lacks are added.
-- ask: {node, owner, server, snapshots: [{id, name, description, created_ms, size_mb, status, contents (JSON or '')}],
-- jobs: [{id, kind, snapshot, snapshot_name, snapshot_description, snapshot_created_ms, request_id, undoes,
-- present_only ('1' or '')}]}
-- Answers the ids of the snapshots that were not known; or 'lease_lost' or 'other_node'.
local ask = cjson.decode(ARGV[1])
if not owns_lease(ask.node, ask.owner) then return 'lease_lost' end
local node, server_id = ask.node, ask.server
local key = 'server:' .. server_id
local server = read(key)
if not server or server.node ~= node then return 'other_node' end
local new = {}

for _, snapshot in ipairs(ask.snapshots) do
  local id = snapshot.id
  local contents = (snapshot.contents or '') ~= '' and snapshot.contents or nil
  if redis.call('EXISTS', 'snapshot:' .. id) == 0 then
    add_snapshot(id, {
      server = server_id, account = server.account, node = node, name = snapshot.name,
      description = snapshot.description, status = snapshot.status, size_mb = snapshot.size_mb,
      created_ms = snapshot.created_ms, contents = contents,
    })
    if tonumber(id) > (number(redis.call('GET', 'snapshots:last_id')) or 0) then
      redis.call('SET', 'snapshots:last_id', id)
    end
    new[#new + 1] = id
  elseif contents and redis.call('HGET', 'snapshot:' .. id, 'server') == server_id then
    redis.call('HSETNX', 'snapshot:' .. id, 'contents', contents)
  end
end

for _, begun in ipairs(ask.jobs) do
  if redis.call('EXISTS', 'job:' .. begun.id) == 0 then
    local now = tostring(now_ms())
    local job = {
      v = '1', state = 'in_progress', kind = begun.kind, server = server_id, server_name = server.name,
      account = server.account, node = node, snapshot = begun.snapshot, snapshot_name = begun.snapshot_name,
      snapshot_description = begun.snapshot_description, snapshot_created_ms = begun.snapshot_created_ms,
      request_id = begun.request_id, undoes = begun.undoes, queued_ms = now, started_ms = now, attempts = '1',
      present_only = begun.present_only == '1' and '1' or nil,
    }
    write('job:' .. begun.id, job)
    list_job(begun.id, job)
    if not server.job then redis.call('HSET', key, 'job', begun.id) end
    tell(begun.id, job)
  end
end
redis.call('HDEL', key, 'unpublished')
return new
