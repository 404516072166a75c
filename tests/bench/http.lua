-- For wrk: sequential calls, each for a different server or snapshot. Arguments: what, token, first id, ids, then
-- JSON of the result. The description and the names are those of a usual call.
local what, token, first, ids
local next_id = 0

function init(arguments)
  what, token, first, ids = arguments[1], arguments[2], tonumber(arguments[3]), tonumber(arguments[4])
  wrk.headers['Authorization'] = 'Bearer ' .. token
  wrk.headers['Content-Type'] = 'application/json'
end

local ROOT, JOBS = '/api/v1/snapshots/', '/api/v1/jobs/'
local BODY = '{"server_id": %d, "name": "before-update", "description": "Snapshot before system update"}'
local asks = {
  create = function(id) return 'POST', ROOT, string.format(BODY, id) end,
  restore = function(id) return 'POST', ROOT .. id .. '/restore/' end,
  delete = function(id) return 'DELETE', ROOT .. id .. '/' end,
  show = function(id) return 'GET', ROOT .. id .. '/' end,
  list_of_server = function(id) return 'GET', ROOT .. '?server_id=' .. id end,
  list_of_100 = function(id) return 'GET', ROOT .. '?page_size=100&page=' .. (1 + id % 20) end,
  job = function(id) return 'GET', JOBS .. string.format('%032x', id) .. '/' end,
  list_of_jobs = function(id) return 'GET', JOBS .. '?page_size=100&page=' .. (1 + id % 20) end,
}

function request()
  local id = first + next_id % ids
  next_id = next_id + 1
  local method, path, body = asks[what](string.format('%d', id))
  return wrk.format(method, path, nil, body)
end

function done(summary, latency)
  local failed = summary.errors
  io.write(string.format(
    'RESULT {"requests": %d, "seconds": %f, "p50_ms": %f, "p99_ms": %f, "refused": %d, "broken": %d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, failed.status,
    failed.connect + failed.read + failed.write + failed.timeout))
end
