-- include: schedules, walk
-- One page of the cell's enabled schedules, by their next run.
-- Only reads.
-- ask: {account, server, target: 'server', 'labels' or 'all', limit, after, since_ms, until_ms (see `walk`)}; all but
-- target and limit may be missing
-- Answers {number of schedules if every one between the bounds matches, else -1, after, schedule (see `show_schedule`),
-- ...}.
local ask = cjson.decode(ARGV[1])
local page = walk(ask, 'schedules:due', 'schedule:', function(id)
  local account, server, labels =
    unpack(redis.call('HMGET', 'schedule:' .. id, 'account', 'server', 'server_labels'))
  if not account or ask.account and account ~= ask.account or ask.server and server ~= ask.server then return nil end
  if ask.target ~= 'all' and ask.target ~= (labels and 'labels' or 'server') then return nil end
  return show_schedule(id)
end)
local is_part = ask.account or ask.server or ask.target ~= 'all'
return {is_part and -1 or count_within(ask, 'schedules:due'), unpack(page)}
