-- Which job holds a server.

-- nil also where the job's record is gone: nobody is left to let go of the server.
local function holder_of(server)
  return server.job and redis.call('EXISTS', 'job:' .. server.job) == 1 and server.job or nil
end
