-- include: enqueue
-- Queues jobs of one server as an admission does, without a job holding the server.
-- ask: {jobs: ids, node}
local ask = cjson.decode(ARGV[1])
for _, id in ipairs(ask.jobs) do
  enqueue(id, {
    kind = 'create', server = '1', server_name = 'web-1', account = '1', node = ask.node, snapshot = '1',
    snapshot_name = 'weekly', snapshot_description = '', snapshot_created_ms = '0', request_id = 'r', undoes = '',
  })
end
